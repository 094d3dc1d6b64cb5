"""What is attributed: records of samples and models, the built-in pairs and their datasets, a user's own file.

Also how models come to be: training, kept checkpoints, and the ground truth of subset models.
Gradients of these models are the next room's, common/gradients/.
"""
