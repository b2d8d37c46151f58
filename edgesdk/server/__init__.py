"""`edgesdk serve`: models behind OpenAI's HTTP API, on this machine.

    guard ──> app ──> service ──> queue, shelf ──> worker thread ──> Runtime.generate
    (who may)  (JSON)  (one answer)  (when, which model)               (the decode loop)

The network side runs on one event loop; whatever computes runs in worker threads.
"""
