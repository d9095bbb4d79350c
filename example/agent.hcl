# A Nomad agent, server and client in one, with the nspawn driver. For trying
# things out: a production cluster has its own servers, ACLs and TLS.

data_dir   = "/var/lib/nomad"
plugin_dir = "/opt/nomad/plugins"
bind_addr  = "0.0.0.0"

server {
  enabled          = true
  bootstrap_expect = 1
}

client {
  enabled  = true
  cni_path = "/usr/lib/cni" # Debian's containernetworking-plugins

  host_volume "shared" {
    path = "/srv/shared" # Nomad does not start unless it is there
  }
}

# The name is the file's in plugin_dir. Nomad skips a plugin without a block. But for
# allow_host_network, which batch needs, everything below is the default.
plugin "nomad-driver-nspawn" {
  config {
    enabled            = true
    allow_host_network = true
    allow_in_place     = false
    allow_privileged   = false
    volumes            = false
    image_paths        = ["/var/lib/machines"]
  }
}

telemetry {
  # Without it, Nomad does not ask drivers for the use of CPU and memory.
  publish_allocation_metrics = true
}
