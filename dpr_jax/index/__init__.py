"""Search engines over the corpus behind four verbs (build, save, load, search), and the stage that
builds one.
"""
