"""The trainer side: an HTTP client that checks answers, value sources, the TVKD trainer."""
