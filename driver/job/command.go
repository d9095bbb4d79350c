package job

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// commandOptions say which command runs, as which user, where and with which environment.
type commandOptions struct {
	Args             []string          `codec:"args"`
	Boot             *bool             `codec:"boot"`
	Command          any               `codec:"command"`
	Entrypoint       []string          `codec:"entrypoint"`
	Environment      map[string]string `codec:"environment"`
	ProcessTwo       *bool             `codec:"process_two"`
	User             string            `codec:"user"`
	WorkingDirectory string            `codec:"working_directory"`
}

var commandSchema = schema.Options{
	"args":              schema.Attr("args", "list(string)"),
	"boot":              schema.Attr("boot", "bool"),
	"command":           schema.Attr("command", "any"),
	"entrypoint":        schema.Attr("entrypoint", "list(string)"),
	"environment":       schema.StringMap("environment"),
	"process_two":       schema.Attr("process_two", "bool"),
	"user":              schema.Attr("user", "string"),
	"working_directory": schema.Attr("working_directory", "string"),
}

// Mode returns what the machine's PID 1 is. An image without a command is booted, unless
// the image itself names a command, as images of registries do.
func (c TaskConfig) Mode() machine.Mode {
	command, _, _ := words(c.Command)
	boot := initArguments(command) && (len(command) > 0 || c.ImageKind() != OCIImage)
	if c.Boot != nil {
		boot = *c.Boot
	}
	switch {
	case boot:
		return machine.Boot
	case c.ProcessTwo != nil && !*c.ProcessTwo:
		return machine.ProcessOne
	}
	return machine.ProcessTwo
}

func (c TaskConfig) validateCommand() error {
	var found schema.Mistakes
	found.Add(schema.Absolute("working_directory", c.WorkingDirectory), c.validateWords())
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		found.Unless(machine.PossibleEnvironmentName(name), "environment: %q cannot be the name of a variable", name)
	}
	return found.Err()
}

// validateWords checks the command, and the options that depend on it.
func (c TaskConfig) validateWords() error {
	command, isList, err := words(c.Command)
	if err != nil {
		return err
	}
	var found schema.Mistakes
	oci := c.ImageKind() == OCIImage
	found.Unless(len(c.Args) == 0 || len(command) > 0 || oci, "args: there is no command to give them to")
	found.Unless(len(c.Args) == 0 || !isList, "args: put them into the list of command, or make command a string")
	if c.Mode() == machine.Boot {
		found.Unless(c.ProcessTwo == nil || !*c.ProcessTwo, "process_two: cannot be combined with boot")
		found.Unless(c.User == "", "user: cannot be combined with boot: the image's init is started as root")
		found.Unless(c.WorkingDirectory == "", "working_directory: cannot be combined with boot")
		found.Unless(len(command) == 0 || initArguments(command), "command: with boot these are arguments for the image's init, which %q is not: set boot = false to run it", first(command))
	} else {
		found.Unless(len(command) > 0 && command[0] != "" || len(command) == 0 && oci, "command: is required without boot")
	}
	return found.Err()
}

func (c TaskConfig) applyCommand(in Input, spec *machine.Spec) error {
	return errors.Join(c.applyWords(in, spec), c.applyUser(in, spec), c.applyEnvironment(in, spec))
}

// applyWords sets the command, or the arguments of the image's init. systemd and its
// journald read their options there; elsewhere they read them from the kernel's command
// line.
func (c TaskConfig) applyWords(in Input, spec *machine.Spec) error {
	command, _, _ := words(c.Command)
	command = append(command, c.Args...)
	switch {
	case spec.Mode == machine.Boot:
		spec.Command = append(c.initArgs(), command...)
		return nil
	case c.ImageKind() != OCIImage:
		spec.Command = command
		return nil
	}
	spec.Command = in.Image.Config.Command(c.Entrypoint, command)
	if in.Image.StoreDigest != "" && len(spec.Command) == 0 {
		return errors.New("command: is required: neither the image nor the job has one")
	}
	return nil
}

// initArgs returns arguments that precede those of the job, which can override them.
func (c TaskConfig) initArgs() []string {
	// systemd-firstboot.service asks questions on the console of an image without a
	// machine ID, such as mkosi makes. Nobody could answer, so the boot would wait
	// forever.
	args := []string{"systemd.firstboot=no"}
	if c.ForwardJournal {
		args = append(args, "systemd.journald.forward_to_console=1")
	}
	return args
}

// words decodes the option `command`: a string, as in the docker driver, or a list, as in
// the community driver.
func words(option any) (list []string, isList bool, err error) {
	if option == nil {
		return nil, false, nil
	}
	items, isList := option.([]any)
	if !isList {
		word, err := scalar(option)
		if err != nil {
			return nil, false, errors.New("command: a string or a list of strings is required")
		}
		return []string{word}, false, nil
	}
	for i, item := range items {
		word, err := scalar(item)
		if err != nil {
			return nil, true, fmt.Errorf("%s: %w", schema.At("command", i), err)
		}
		list = append(list, word)
	}
	return list, true, nil
}

// scalar converts a value to a string, like HCL where it expects a string.
func scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool, int64, uint64, float64:
		return fmt.Sprint(v), nil
	}
	return "", errors.New("a string is required")
}

// initArguments reports whether a command is meant for the image's init, as in `command =
// ["--unit=rescue.target"]`: options and assignments, without a program.
func initArguments(command []string) bool {
	return !slices.ContainsFunc(command, func(word string) bool {
		return !strings.HasPrefix(word, "-") && (!strings.Contains(word, "=") || strings.Contains(word, "/"))
	})
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// applyUser sets the user and the directory of the command, from the job or else from the
// image. Nomad's own `user` is for all drivers; the option is for this one.
func (c TaskConfig) applyUser(in Input, spec *machine.Spec) error {
	boot := spec.Mode == machine.Boot
	switch {
	case c.User != "" && in.Task.User != "" && c.User != in.Task.User:
		return fmt.Errorf("user: %q differs from the task's user %q: set one of them", c.User, in.Task.User)
	case boot && in.Task.User != "":
		return fmt.Errorf("user: the task's user %q cannot be combined with boot", in.Task.User)
	case boot:
		return nil
	}
	spec.User = cmp.Or(c.User, in.Task.User, in.Image.Config.User)
	if id, ok := outOfRange(spec.User); ok {
		return fmt.Errorf("user: a container has the IDs 0 to %d, but not %s of user %q", maxID, id, spec.User)
	}
	spec.WorkingDirectory = cmp.Or(c.WorkingDirectory, in.Image.Config.WorkingDir)
	return nil
}

// maxID is the highest UID and GID of a container.
const maxID = 65535

// outOfRange returns the part of USER[:GROUP] that is a number above the IDs of a
// container.
func outOfRange(user string) (id string, ok bool) {
	for part := range strings.SplitSeq(user, ":") {
		n, err := strconv.ParseUint(part, 10, 64)
		if err == nil && n > maxID || errors.Is(err, strconv.ErrRange) {
			return part, true
		}
	}
	return "", false
}

// applyEnvironment merges the variables of the image, of Nomad and of the job. Later ones
// override earlier ones.
func (c TaskConfig) applyEnvironment(in Input, spec *machine.Spec) error {
	env := map[string]string{}
	for _, variable := range in.Image.Config.Env {
		if name, value, ok := strings.Cut(variable, "="); ok && machine.PossibleEnvironmentName(name) {
			env[name] = value
		}
	}
	maps.Copy(env, in.Task.Env)
	maps.Copy(env, c.Environment)
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !machine.PossibleEnvironmentName(name) || !utf8.ValidString(name):
			found.Refuse("env: %q cannot be the name of a variable", name)
		case !utf8.ValidString(env[name]) || strings.Contains(env[name], "\x00"):
			found.Refuse("env: the value of %q is not valid UTF-8", name)
		}
	}
	spec.Environment = env
	return found.Err()
}
