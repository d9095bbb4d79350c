package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"nomad-driver-nspawn/e2e/agent"
)

// display runs commands and shows them with their output. After the first failure, it does
// nothing more.
type display struct {
	ctx   context.Context
	agent *agent.Agent
	err   error
}

func (d *display) show(jobs map[string]*agent.Alloc) {
	batch, boot, bridge := short(jobs["batch"]), short(jobs["boot"]), short(jobs["bridge"])
	d.title("Three jobs, run by Nomad")
	d.onHost("nomad", "job", "status")

	d.title("A command that ran to its end: its output")
	d.onHost("nomad", "alloc", "logs", batch)
	d.onHost("nomad", "alloc", "logs", "-stderr", batch)

	d.title("A booted Debian: commands in it, what it uses, and systemd's view of it")
	d.onHost("nomad", "alloc", "exec", boot, "systemctl", "is-system-running", "--wait")
	d.onHost("nomad", "alloc", "exec", boot, "sh", "-c", "uname -a; id")
	d.onHost("nomad", "alloc", "status", "-stats", boot)
	d.onHost("machinectl", "list", "--no-pager")

	d.title("Its nginx, from outside of the host, through a forwarded port")
	d.outside("curl", "--silent", "--show-error", "--max-time", "5", "--retry", "20", "--retry-delay", "1", "--retry-connrefused", "--head", d.url("8080"))

	d.title("A web server in a user namespace and Nomad's bridge network")
	d.onHost("nomad", "alloc", "exec", bridge, "cat", "/proc/self/uid_map")
	d.outside("curl", "--silent", "--show-error", "--max-time", "5", "--retry", "20", "--retry-delay", "1", "--retry-connrefused", d.url("8081"))
	if d.err == nil {
		d.next(boot)
	}
}

// next shows what to try after the demo, for which the host stays up.
func (d *display) next(alloc string) {
	d.title("The host stays up. What to try next")
	fmt.Printf(`make shell                            a shell on the host; in it:
  nomad job run FILE                  FILE as in example/*/job.nomad.hcl
  nomad alloc exec -t %s bash   a shell in the booted Debian
  journalctl -u 'nomad-nspawn-*'      the units of the tasks
  journalctl -M TASK-ALLOCATION       the journal in a booted task
%-37s Nomad's API, and its web interface if it was built with one
make down                             remove the host
`, alloc, d.url("4646"))
}

func (d *display) url(port string) string {
	return "http://" + net.JoinHostPort(d.agent.Host.Addr().String(), port) + "/"
}

func short(alloc *agent.Alloc) string { return alloc.ID[:8] }

func (d *display) title(text string) {
	if d.err == nil {
		fmt.Printf("\n# %s\n", text)
	}
}

// onHost runs a command on the host.
func (d *display) onHost(argv ...string) {
	cmd := d.agent.Host.Command(d.ctx, argv[0], argv[1:]...)
	cmd.Env = append(cmd.Env, "NOMAD_CLI_SHOW_HINTS=0")
	d.run(cmd, argv)
}

// outside runs a command on this machine.
func (d *display) outside(argv ...string) {
	d.run(exec.CommandContext(d.ctx, argv[0], argv[1:]...), argv)
}

const commandTimeout = 30 * time.Second

func (d *display) run(cmd *exec.Cmd, argv []string) {
	if d.err != nil {
		return
	}
	line := make([]string, len(argv))
	for i, word := range argv {
		line[i] = word
		if strings.ContainsAny(word, " ;'\"$") {
			line[i] = "'" + word + "'"
		}
	}
	fmt.Println("$", strings.Join(line, " "))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	timer := time.AfterFunc(commandTimeout, func() { _ = cmd.Cancel() })
	defer timer.Stop()
	if err := cmd.Run(); err != nil {
		d.err = fmt.Errorf("run %s: %w; Nomad's journal ends with:\n%s",
			strings.Join(line, " "), err, d.agent.Journal(d.ctx, "nomad.service", 10))
	}
}
