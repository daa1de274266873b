"""Who is asked, and how: a folder of weights, or an endpoint."""
