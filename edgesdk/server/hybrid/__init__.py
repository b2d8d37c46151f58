"""`edgesdk serve --cloud`: chat requests that a cloud may answer where the device is not sure.

    path ──> asking ──> Service.begin ──> work (thread) ──> HybridClient ──> holding ──> wording
    (ASGI)   (JSON)     (when, which model)  (one answer)                    (what may be shown)

What a client is told, besides what OpenAI's API has:

- headers `X-Edgesdk-Route` ("local" or "cloud") and `X-Edgesdk-Reason`, and a field `edgesdk` of
  the answer: route, reason, confidence, low_confidence, cost (money, tokens), endpoint, whole,
  seconds. `usage` counts the answer of the one who gave it; null where an endpoint does not count.
- In a stream the field is in the chunk with the `finish_reason`, and in the one with the usage.
  Headers come before the first piece: the route is in them, unless it is not decided by then
  ("undecided", only with hold "nothing"); the reason is in them if it is known.
- What a cloud's model thinks is in `reasoning_content`.
- An answer that broke off has the `finish_reason` "length", and `whole` is false.

What a client may say: headers `X-Edgesdk-Upload` ("local_only", "redact", "allow") and
`X-Edgesdk-Prefer` ("local", "cloud"), or the same in a field `edgesdk` of the request. The server's
own rule for uploads is the loosest that is granted.

What only the device can answer it answers alone, and the header, the field and the reason say so:
`/v1/completions`, because clouds answer chats, and requests for `logprobs`, because those are of
the device's model. Nobody decides there, so there is no confidence and nothing in the journal.

A client that only appends text cannot take back a draft. So with hold "decision", the default, the
device's pieces wait until it is sure that nobody else answers, which for an answer of the device is
its end; the cloud's pieces go out as they come, and what breaks off is not begun again. With
"answer" all pieces wait until the answer is whole, and attempts that fail are never seen. With
"nothing" none waits; a draft that is withdrawn is told by a chunk with the field
`edgesdk: {"restart": reason}`, after which the answer begins anew. Where no cloud may answer,
nothing waits. Answers of a given form, or that must call a tool, are of use only as a whole, and
wait for their end under "decision" too. If what was shown has to be withdrawn after all, the stream
ends with an error.
"""
