"""`tvkd store`: what can be done with a store's contents.

command   the actions and their settings      info     what is in a store, by teacher
archive   export and import, card             rescore  a sample computed again, and its certificate
"""
