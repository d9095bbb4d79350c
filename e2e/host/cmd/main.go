// Command disposable-host boots disposable hosts and runs commands and tests
// in them. See the package nomad-driver-nspawn/e2e/host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"nomad-driver-nspawn/e2e/host"
)

const usage = `usage: disposable-host COMMAND

  up [--suite SUITE] [--lan LAN] [--bind SRC:DST[:ro]]... NAME
                                                      boot a host that stays up
  exec NAME -- CMD...                                 run a command in it
  shell NAME                                          an interactive shell in it
  addr NAME                                           its address
  list                                                the hosts that are up
  down NAME | --all                                   take it down
  run [--suite SUITE] [--bind SRC:DST[:ro]]... -- CMD...
                                                      up, exec and down
  test [--suite SUITE] [--race] [--run REGEXP] PKG... the host tests of packages, in a fresh host
  image busybox | debian | inits                      the directory of a guest image, or of several
  nomad                                               the path of a Nomad agent
SUITE is bookworm (the default), trixie or forky. Hosts with the same LAN are
other machines for each other.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if status, ok := err.(exitStatus); ok {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "disposable-host:", err)
		os.Exit(1)
	}
}

// exitStatus is the exit status of a command in a host. It is not a failure of this
// program.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	commands := map[string]func(context.Context, []string) error{
		"up": up, "exec": execute, "shell": shell, "addr": addr, "list": list, "down": down, "run": run,
		"test": test, "image": image, "nomad": nomad,
	}
	command, ok := commands[args[0]]
	if !ok {
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("no command %q", args[0])
	}
	return command(ctx, args[1:])
}

// hostFlags are the flags of every command that boots a host.
func hostFlags(name string) (*flag.FlagSet, *host.Options) {
	opts := &host.Options{}
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.StringVar(&opts.Suite, "suite", host.Released[0], "Debian `release` of the host")
	flags.Func("bind", "show `SRC:DST[:ro]` in the host", func(s string) error {
		b, err := host.ParseBind(s)
		opts.Binds = append(opts.Binds, b)
		return err
	})
	flags.StringVar(&opts.LAN, "lan", "", "`name` of a network to share with other hosts, by lan0")
	return flags, opts
}

func up(ctx context.Context, args []string) error {
	flags, opts := hostFlags("up")
	_ = flags.Parse(args) // exits on error
	if flags.NArg() != 1 {
		return errors.New("up: want one NAME, after the flags")
	}
	opts.Name = flags.Arg(0)
	h, err := host.Up(ctx, *opts)
	if err != nil {
		return err
	}
	return h.Detach()
}

// afterDashes splits "ARG... -- CMD..." and wants n ARGs.
func afterDashes(args []string, n int) (before, command []string, err error) {
	if len(args) > n && args[n] == "--" {
		before, command = args[:n], args[n+1:]
	}
	if len(command) == 0 {
		return nil, nil, errors.New("want a command after --")
	}
	return before, command, nil
}

func execute(ctx context.Context, args []string) error {
	names, command, err := afterDashes(args, 1)
	if err != nil {
		return err
	}
	h, err := host.Open(names[0])
	if err != nil {
		return err
	}
	return attach(ctx, h, command)
}

func shell(ctx context.Context, args []string) error {
	h, err := openOnly(args)
	if err != nil {
		return err
	}
	return attach(ctx, h, []string{"env", "TERM=" + os.Getenv("TERM"), "bash", "-il"})
}

// attach runs command in h with this process's streams. A signal that ends
// this process ends the command first.
func attach(ctx context.Context, h *host.Host, command []string) error {
	cmd := h.Command(ctx, command[0], command[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exitStatus(exit.ExitCode())
	}
	return err
}

func openOnly(args []string) (*host.Host, error) {
	if len(args) != 1 {
		return nil, errors.New("want one NAME")
	}
	return host.Open(args[0])
}

func addr(_ context.Context, args []string) error {
	h, err := openOnly(args)
	if err != nil {
		return err
	}
	fmt.Println(h.Addr())
	return nil
}

func list(context.Context, []string) error {
	hosts, err := host.List()
	for _, h := range hosts {
		fmt.Printf("%s\t%s\t%s\n", h.Name(), h.Suite(), h.Addr())
	}
	return err
}

func down(_ context.Context, args []string) error {
	if len(args) == 1 && args[0] == "--all" {
		hosts, err := host.List()
		for _, h := range hosts {
			err = errors.Join(err, h.Down())
		}
		return err
	}
	h, err := openOnly(args)
	if err != nil {
		return err
	}
	return h.Down()
}

func run(ctx context.Context, args []string) error {
	flags, opts := hostFlags("run")
	_ = flags.Parse(args) // exits on error
	if flags.NArg() == 0 {
		return errors.New("run: want a command after --")
	}
	h, err := host.Up(ctx, *opts)
	if err != nil {
		return err
	}
	err = attach(ctx, h, flags.Args())
	if downErr := h.Down(); downErr != nil {
		return errors.Join(err, downErr)
	}
	return err
}

func image(ctx context.Context, args []string) error {
	makers := map[string]func(context.Context) (string, error){
		"busybox": host.BusyboxImage, "debian": host.DebianImage, "inits": host.InitImages,
		"mkosi": host.MkosiTree, "mkosi-disk": host.MkosiDisk,
	}
	if len(args) != 1 || makers[args[0]] == nil {
		return errors.New("image: want busybox, debian, inits, mkosi or mkosi-disk")
	}
	return printPath(makers[args[0]](ctx))
}

func nomad(ctx context.Context, _ []string) error {
	return printPath(host.NomadBinary(ctx))
}

func printPath(path string, err error) error {
	if err == nil {
		fmt.Println(path)
	}
	return err
}
