# A whole Debian, booted, with nginx behind a forwarded port.
job "boot" {
  group "web" {
    network {
      port "http" {
        static = 8080
        to     = 80
      }
    }

    task "nginx" {
      driver = "nspawn"

      config {
        image = "debian"
        ports = ["http"]
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
