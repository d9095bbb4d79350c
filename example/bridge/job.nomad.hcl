# A command in Nomad's own bridge network, with a user namespace, a template
# and a volume. Nomad forwards the port and registers the service.
job "bridge" {
  group "web" {
    network {
      mode = "bridge"
      port "http" {
        static = 8081
        to     = 80
      }
    }

    service {
      name     = "web"
      port     = "http"
      provider = "nomad"
    }

    volume "shared" {
      type      = "host"
      source    = "shared"
      read_only = true
    }

    task "httpd" {
      driver = "nspawn"

      config {
        image   = "busybox"
        command = "httpd"
        args    = ["-f", "-v", "-p", "80", "-h", "/local/www"]
      }

      volume_mount {
        volume      = "shared"
        destination = "/shared"
        read_only   = true
      }

      template {
        destination = "local/www/index.html"
        data        = "allocation {{ env \"NOMAD_ALLOC_ID\" }}\n"
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
