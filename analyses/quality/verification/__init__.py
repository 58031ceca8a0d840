"""Is this file the dictionary that it claims to be?"""
