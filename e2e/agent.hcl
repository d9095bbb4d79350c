# What the tests want beside example/agent.hcl.

log_level = "DEBUG"

client {
  # No task waits for another test.
  max_kill_timeout = "60s"

  host_network "inside" {
    cidr = "127.0.0.0/8"
  }
}

plugin "nomad-driver-nspawn" {
  config {
    allow_host_network = false
    allow_in_place     = true
    allow_devices      = ["/dev/e2e-*"]

    allow_network_bridges    = ["br-e2e"]
    allow_network_interfaces = ["e2e-*"]

    # All tests are in this one, and have what is not allowed to others.
    namespace "default" {
      allow_host_network     = true
      allow_journald_logging = true
      allow_sysctls          = ["net.*"]
    }
  }
}
