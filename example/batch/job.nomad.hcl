# A command that runs to its end, in a busybox image, as PID 2.
job "batch" {
  type = "batch"

  group "hello" {
    task "hello" {
      driver = "nspawn"

      env {
        GREETING = "hello"
      }

      config {
        image        = "busybox"
        command      = "/bin/sh"
        args         = ["-c", "echo $GREETING from $NOMAD_TASK_NAME; id; echo done >&2"]
        network_veth = false
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
