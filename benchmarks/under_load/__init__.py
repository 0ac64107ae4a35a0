"""A server under load: run.py has the cases, server.py starts a server, clients.py asks by wrk and hey."""
