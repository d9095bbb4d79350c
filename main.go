// Command nomad-driver-nspawn is a Nomad task driver that runs systemd-nspawn
// containers. Nomad's client starts it as a plugin.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver"
	"nomad-driver-nspawn/driver/cli"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/launch"
)

// subcommand is something that the binary does.
type subcommand struct {
	name, usage string
	run         func(args []string, out io.Writer) error
}

// subcommands are by name; the first one is run without a name.
var subcommands = []subcommand{
	{"serve", "serve as Nomad's plugin, which the agent does by itself", serve},
	{"images", "list the images of this client's store; images prune removes those that no task uses", images},
	{"version", "show the version, also as --version", version},
}

func main() {
	if launch.Called(os.Args) {
		launch.Main()
	}
	if inside.Called(os.Args) {
		inside.Main()
	}
	if container.Called(os.Args) {
		container.Main()
	}
	name, args := subcommands[0].name, os.Args[1:]
	if len(args) > 0 {
		name, args = strings.TrimPrefix(args[0], "--"), args[1:]
	}
	for _, command := range subcommands {
		if command.name == name {
			run(command, args)
			return
		}
	}
	fmt.Fprintf(os.Stderr, "nomad-driver-nspawn: there is no subcommand %q; there are:\n", name)
	for _, command := range subcommands {
		fmt.Fprintf(os.Stderr, "  %-8s  %s\n", command.name, command.usage)
	}
	os.Exit(2)
}

func run(command subcommand, args []string) {
	if err := command.run(args, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "nomad-driver-nspawn %s: %v\n", command.name, err)
		os.Exit(1)
	}
}

func serve([]string, io.Writer) error {
	// Our stderr is a pipe to the agent. When the agent is killed, the first line
	// of log must not end the plugin, and with it its watch over tasks.
	signal.Ignore(unix.SIGPIPE)
	driver.Serve()
	return nil
}

func images(args []string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return cli.Images(ctx, args, out)
}

func version(_ []string, out io.Writer) error {
	_, err := fmt.Fprintln(out, "nomad-driver-nspawn", driver.Version)
	return err
}
