"""A bundle that answers over HTTP: rows as JSON, Arrow or tensors, scored in batches.

Reading order: options.py and refusals.py (why a request or a row is not scored); input_columns.py, json_rows.py,
request_rows.py and arrow_rows.py (from bodies to rows); served_bundle.py, scoring.py and batcher.py (from rows to
predictions); metrics.py, current_bundle.py (the swap) and service.py (what the endpoints share); bodies.py,
answers.py, score_routes.py, state_routes.py, tensors.py, tensor_rows.py and protocol_routes.py (the endpoints);
schemas.py, gate.py, application.py, connections.py, listening.py and run_server.py.
Import from the modules. May import `serving` and everything below it.
"""
