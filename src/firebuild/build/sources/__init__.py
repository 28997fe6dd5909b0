"""Where Dockerfiles, build contexts and the sources of ADD come from: folders, archives, git, HTTP, standard input."""
