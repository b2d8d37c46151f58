"""`edgesdk serve --cloud`: chat requests that a cloud may answer where the device is not sure.

path ──> asking ──> Service.begin ──> work (thread) ──> HybridClient ──> holding ──> wording
(ASGI)   (JSON)     (when, which model)  (one answer)                    (what may be shown)
"""
