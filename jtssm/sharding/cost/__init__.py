"""What a step costs: machines, demands, seconds, memory, the search for forms and meshes."""
