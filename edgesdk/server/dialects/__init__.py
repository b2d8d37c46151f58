"""Other APIs than OpenAI's chat completions, as thin adapters over the one request path.

Each adapter writes a request as the body of a chat completion, which takes the path of all others,
and builds the response in its own API's form.

    wire_formats         how each API writes streams and errors
    conversation         what the adapters write
    translation          endpoints whose requests are translated
    routes               their paths
    anthropic_requests   `/v1/messages`
    anthropic_answers    its responses
    responses_requests   `/v1/responses`
    responses_answers    its responses
    responses_routes     its paths
    ollama_requests      `/api/chat` and `/api/generate`
    ollama_answers       their responses
    ollama_routes        their paths, and what Ollama tells of models
    tokenizing_routes    what llama.cpp's server and vLLM's tell of tokens
    response_store       what `previous_response_id` goes on with
"""
