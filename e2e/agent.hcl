# What the tests want beside example/agent.hcl.

log_level = "DEBUG"

client {
  # No task waits for another test.
  max_kill_timeout = "60s"
}

plugin "nomad-driver-nspawn" {
  config {
    allow_in_place = true
  }
}
