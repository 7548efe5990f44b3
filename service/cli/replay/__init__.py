"""`nextarm replay`: play a recorded prompts x models table through the HTTP API, as a client that knows nothing else.

file --records--> rows --tables, expression--> Table --player, over HTTP--> runs --report--> summary, plot, results.json
"""
