"""Why a bank is searched as it is, in words: what `stats` says beside its index."""

BEING_MADE = "an inverted file for as many entries as there are now is being made"

BEING_FILLED = "entries are being put into lists; until then they are all looked at"

STRANGERS = (
    "keys have changed: entries unlike those that the inverted file was made of are all looked at, until it"
    " is made anew"
)

BEING_JUDGED = (
    "how many lists to look into is being learnt anew, since the bank has grown; until then it is more"
)

ALL_ASKED = "recall 1.0 needs exact search"

NONE_FASTER = "no inverted file would be faster at the recall that is asked for, with keys as they are"

TOO_FEW = "too few entries or queries for an inverted file so far"
