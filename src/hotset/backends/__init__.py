"""Where the decoder's parts are computed."""
