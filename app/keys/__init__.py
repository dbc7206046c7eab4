"""Holds the API keys: which requests a client may send, for which tasks, and how many.

`key` says which facts a key has, `keyring` finds the key of a request and follows the file,
`usage` counts against a key's limits, `middleware` refuses requests, and `command` edits the file.
Without `DELTABERT_KEYS` and `DELTABERT_KEYS_FILE` a server loads only the names of the errors.
"""
