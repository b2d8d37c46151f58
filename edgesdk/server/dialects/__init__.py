"""Other APIs than OpenAI's chat completions, as thin adapters over the one request path.

Each adapter writes a request as the body of a chat completion, which takes the path of all others,
and builds the response in its own API's form.

    wire_formats         how each API writes streams and errors
    conversation         what the adapters write
    anthropic_requests   `/v1/messages`
    anthropic_answers    its responses
"""
