"""`tvkd demo`: the main job, end to end, on a real small teacher and on two CPU cores."""
