"""`edgesdk serve`: models behind OpenAI's HTTP API, on this machine, with or without a cloud.

    app              the paths, and who may
    answer_endpoint  HTTP and server-sent events
    request_parsing  JSON to a Request
    service          the queue
    model_pool       the model
    answers          the worker thread
    responses        JSON again

Where OpenAI's API has no word for what ended an answer, its `finish_reason` is "length", and the
field `edgesdk` of the answer has the true one: "repetition" (it went in a cycle) or "deadline".

The network side runs on one event loop; whatever computes runs in worker threads. An answer comes
from one of two sources (`answers`): the device's model alone, or a hybrid client around it, which
may ask a cloud. The rest of the path is the same.

With a cloud, clients learn more than OpenAI's API has:

- The headers `X-Edgesdk-Route` ("local" or "cloud") and `X-Edgesdk-Reason` say who answered and
  why. The field `edgesdk` of the answer has route, reason, confidence, low_confidence, cost (money,
  tokens), endpoint, whole, seconds, and failures: why requests to clouds failed (endpoint, kind,
  status, code, message). `usage` counts the answer of the one who gave it; it is null where an
  endpoint does not count.
- In a stream the field is in the chunk with the `finish_reason`, and in the one with the usage.
  Headers come before the first piece, so the route is "undecided" where it is not known by then
  (only with hold "nothing"), and the reason is missing.
- `reasoning_content` has what the model thought, the device's or a cloud's.
- Half an answer is given only where nobody has a whole one, and where a stream has shown it
  already. It has the `finish_reason` "length" (or "content_filter"); `whole` is false and
  `low_confidence` true.

A client chooses with the headers `X-Edgesdk-Upload` ("local_only", "redact", "allow") and
`X-Edgesdk-Prefer` ("local", "cloud"), or with the same in a field `edgesdk` of the request. The
server's own rule for uploads is the loosest that is granted.

The device alone answers `/v1/completions`, because clouds answer chats, and requests for
`logprobs`, because those are of the device's model. The header, the field and the reason say so.
Nobody decides there, so there is no confidence and no entry in the journal.

A client that only appends text cannot take back a draft. The hold policy says what waits:

- "decision", the default: the device's pieces wait until nobody else can answer, which for an
  answer of the device is its end. The cloud's pieces go out as they come, and an answer that breaks
  off is not begun again. Answers of a given format, or that must call a tool, are of use only as a
  whole, so they wait for their end.
- "answer": all pieces wait until the answer is whole; nobody sees attempts that fail.
- "nothing": no piece waits. A chunk with the field `edgesdk: {"restart": reason}` withdraws the
  draft, and the answer begins anew.

Where no cloud may answer, nothing waits. If what was shown has to be withdrawn after all, the
stream ends with an error.
"""
