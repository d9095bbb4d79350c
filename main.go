// Command nomad-driver-nspawn is a Nomad task driver that runs systemd-nspawn
// containers. Nomad's client starts it as a plugin.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver"
	"nomad-driver-nspawn/nspawn/enter/container"
)

func main() {
	if container.Called(os.Args) {
		container.Main()
	}
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Println("nomad-driver-nspawn", driver.Version)
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "images" {
		images(os.Args[2:])
		return
	}
	// Our stderr is a pipe to the agent. When the agent is killed, the first
	// line of log must not end the plugin, and with it its watch over tasks.
	signal.Ignore(unix.SIGPIPE)
	driver.Serve()
}

func images(args []string) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := driver.ImagesCommand(ctx, args, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-nspawn images:", err)
		stop()
		os.Exit(1)
	}
}
