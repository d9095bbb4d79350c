# What Nomad does not clean up, as it was not told of a plugin's death, the
# driver does, soon enough for the end of the soak.

plugin "nomad-driver-nspawn" {
  config {
    allow_host_network = true
    dangling_machines {
      period         = "10s"
      creation_grace = "10s"
    }
  }
}
