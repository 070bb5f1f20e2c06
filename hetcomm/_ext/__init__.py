"""Compiled parts: the UCP binding (`ucp`) and, where oneCCL's headers were found, `oneccl`.

Neither is linked with the library it speaks to. Both are handed a library that has been loaded at run
time, so that an installed wheel works with whichever UCX or oneCCL a process already has.
"""
