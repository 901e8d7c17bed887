"""What tvkd runs inside vLLM: a plug-in model class whose pooler reduces logits where they are made."""
