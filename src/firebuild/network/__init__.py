"""Networks: CNI configurations and their runner, taps, published ports, and what a guest is told about names."""
