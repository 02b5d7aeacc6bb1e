"""Evaluation: speech on disk or a checkpoint -> word errors, naturalness, similarity, speed, by judges that are not ours (extra `eval`)."""
