"""The paper's motion module: encoder, decoder, and the flows of queries."""
