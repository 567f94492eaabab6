"""Methods of equal workers: independent subnets, local SGD, ensembles."""
