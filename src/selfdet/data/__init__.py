"""Images, labels, views: everything between files on disk and the tensors a method takes."""
