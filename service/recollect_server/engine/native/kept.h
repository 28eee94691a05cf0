// What a thread keeps to calculate in: to get new pages takes longer than to fill them.
#pragma once
#include <pthread.h>

// It is known to the library, so that it can be let go while no call runs (rc_give_back): a function of
// library.cpp that leads to one has to be `Calling`.
class KeptOfThread {
  public:
    KeptOfThread(const KeptOfThread&) = delete;
    KeptOfThread& operator=(const KeptOfThread&) = delete;
    virtual void let_go() = 0;
    bool is_of_this_thread() const { return pthread_equal(owner_, pthread_self()); }

  protected:
    KeptOfThread();
    virtual ~KeptOfThread() = default;
    void forget();  // before what is kept ends: another thread might let it go

  private:
    const pthread_t owner_;
};

template <class What>
class Kept final : public KeptOfThread {
  public:
    ~Kept() { forget(); }
    What& operator*() { return what_; }
    void let_go() override { what_ = What{}; }

  private:
    What what_;
};
