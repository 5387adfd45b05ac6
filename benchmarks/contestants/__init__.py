"""The sides of the questions; each class lives in a process of its own and returns plain values.

Next: hugging_face.py
"""
