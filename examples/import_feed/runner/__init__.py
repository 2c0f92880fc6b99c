"""What stages the demo: workers, queue, kill, and the verdict from the marks that the imports left."""
