"""Will these models merge? What is left of every skill: from weights, accuracies, few images."""
