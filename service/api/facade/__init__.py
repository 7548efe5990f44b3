"""The OpenAI facade: requests of OpenAI clients, answered by the upstream of the arm that a bandit chooses.

    routes ──> gateway (decide, call, fall back, close) ──> client (one call) ──> upstream
                  │                                           └── surfaces, sse (what the four APIs say, also in streams)
                  └── outcomes (what is learned of a call)

Off unless `NEXTARM_UPSTREAMS` names a file (upstreams.py). gateway.py and routes.py are imported only then.
"""
