package job

import (
	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

type loggingOptions struct {
	ForwardJournal bool     `codec:"forward_journal"`
	LinkJournal    string   `codec:"link_journal"`
	Logging        *Logging `codec:"logging"`
	NotifyReady    bool     `codec:"notify_ready"`
}

// Logging says where a task's output is sent: "nomad", or "journald" for the host's
// journal.
type Logging struct {
	Driver string `codec:"driver"`
}

var loggingSchema = schema.Options{
	"forward_journal": schema.WithDefault("forward_journal", "bool", true),
	"link_journal":    schema.Attr("link_journal", "string"),
	"logging": schema.Block("logging", schema.Options{
		"driver": schema.WithDefault("driver", "string", nomadLogs),
	}),
	"notify_ready": schema.Attr("notify_ready", "bool"),
}

const (
	nomadLogs    = "nomad"
	journaldLogs = "journald"
)

// linkJournals are the values of --link-journal= (systemd-nspawn(1)) that leave nothing on
// the host after the machine is removed.
var linkJournals = []string{"no", "guest", "try-guest", "auto"}

func (c TaskConfig) validateLogging() error {
	var found schema.Mistakes
	found.Add(schema.OneOf("link_journal", c.LinkJournal, linkJournals))
	if c.Logging != nil {
		found.Add(schema.OneOf("logging.driver", c.Logging.Driver, []string{nomadLogs, journaldLogs}))
	}
	return found.Err()
}

func (c TaskConfig) applyLogging(in Input, spec *machine.Spec) error {
	spec.LinkJournal = c.linkJournal()
	spec.NotifyReady = c.NotifyReady
	journald := c.Logging != nil && c.Logging.Driver == journaldLogs
	spec.LogToJournal = !in.Policy.LogCollection || journald
	if journald {
		return in.Policy.JournaldLogging()
	}
	return nil
}

// linkJournal returns how the journal is linked. A booted machine has a journal like the
// host's; a command has none.
func (c TaskConfig) linkJournal() string {
	switch {
	case c.LinkJournal != "":
		return c.LinkJournal
	case c.Mode() == machine.Boot:
		return "try-guest"
	}
	return "no"
}
