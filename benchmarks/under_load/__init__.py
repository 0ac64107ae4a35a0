"""A server under load: run.py has the cases and the report, server.py starts a server, clients.py asks by wrk and hey."""
