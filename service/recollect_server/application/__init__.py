"""The use cases. They know no protocol: rpc and embedded callers speak to them in domain words."""
