"""Tasks: label sets and their images, from a folder, an archive or a list file to decoded arrays.

labels → source → splits, classes → decoded → task
"""
