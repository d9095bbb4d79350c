package driver

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn"
)

// newSpec translates what the job asks for into a machine. It is pure, and
// what cannot be given is refused by name, all of it at once: nothing a job
// asks for is silently ignored.
func newSpec(policy Config, task TaskConfig, cfg *drivers.TaskConfig, image foundImage, dns hostDNS) (nspawn.Spec, error) {
	if err := task.Validate(); err != nil {
		return nspawn.Spec{}, err
	}
	network, networkErr := newNetwork(task, cfg)
	binds, bindsErr := newBinds(policy, task, cfg)
	overlays, overlaysErr := newOverlays(policy, task, cfg.TaskDir().Dir)
	command, commandErr := payload(task, image)
	user, userErr := taskUser(task, cfg, image)
	limits, limitsErr := newLimits(cfg.Resources)
	environment, environmentErr := newEnvironment(task, cfg, image)
	err := errors.Join(imagePolicy(task, image), networkErr, bindsErr, overlaysErr, distinct(binds, overlays), commandErr,
		userErr, limitsErr, environmentErr,
		privileges(policy, task), unsupported(task, cfg))
	if err != nil {
		return nspawn.Spec{}, err
	}
	spec := nspawn.Spec{
		Machine:          nspawn.MachineName(cfg.AllocID, cfg.Name),
		Description:      description(cfg),
		JournalFields:    journalFields(cfg),
		UUID:             machineID(cfg.AllocID),
		Mode:             task.mode(),
		Command:          command,
		Environment:      environment,
		WorkingDirectory: workingDirectory(task, image),
		User:             user,
		Hostname:         task.Hostname,
		Capabilities:     slices.Sorted(slices.Values(task.Capability)),
		LinkJournal:      linkJournal(task),
		NotifyReady:      task.NotifyReady,
		LogToJournal:     logsToJournal(policy, task),
		Root: nspawn.Root{
			Image:         image.Tree,
			Disk:          image.Disk,
			DiskPolicy:    task.ImagePolicy,
			Stored:        image.Stored,
			InPlace:       !task.Ephemeral,
			ReadOnly:      task.ReadOnly,
			Volatile:      task.Volatile,
			Tmpfs:         task.Tmpfs,
			Inaccessible:  task.Inaccessible,
			UserNamespace: task.UserNamespacing,
			Writable:      task.writable(),
		},
		Binds:    binds,
		Overlays: overlays,
		Network:  network,
		Limits:   limits,
	}
	spec.Root.Files, spec.ResolvConf = nameFiles(task, cfg, network, dns)
	return spec, nil
}

// imagePolicy is for disks, which a name may turn out not to be.
func imagePolicy(task TaskConfig, image foundImage) error {
	if task.ImagePolicy != "" && image.Tree != "" {
		return fmt.Errorf("image_policy: %q is a directory tree", task.Image)
	}
	return nil
}

// privileges are what lets a job out of its machine, or into others'.
func privileges(policy Config, task TaskConfig) error {
	var errs []error
	if !task.UserNamespacing && !policy.AllowPrivileged {
		errs = append(errs, errors.New("user_namespacing: false makes the machine's root the host's root; "+
			"the operator has to allow it with allow_privileged = true in the plugin's config"))
	}
	if !task.Ephemeral && !task.ReadOnly && !policy.AllowInPlace {
		errs = append(errs, errors.New("ephemeral: false lets the job change the image that others start from; "+
			"the operator has to allow it with allow_in_place = true in the plugin's config"))
	}
	return errors.Join(errs...)
}

// unsupported names what Nomad gives and this driver cannot pass on.
func unsupported(task TaskConfig, cfg *drivers.TaskConfig) error {
	var errs []error
	for _, device := range cfg.Devices {
		errs = append(errs, fmt.Errorf("device %s: devices are not supported", device.HostPath))
	}
	if !task.Ephemeral && cfg.DNS != nil {
		errs = append(errs, errors.New("ephemeral: the dns block of the group's network cannot be written into an image that is run in place"))
	}
	if task.ResolvConf != "" && cfg.DNS != nil {
		errs = append(errs, errors.New("resolv_conf: cannot be combined with the dns block of the group's network"))
	}
	return errors.Join(errs...)
}

// taskUser is who the payload runs as. Nomad's own `user` is for all drivers,
// the option for this one.
func taskUser(task TaskConfig, cfg *drivers.TaskConfig, image foundImage) (string, error) {
	switch {
	case task.User != "" && cfg.User != "" && task.User != cfg.User:
		return "", fmt.Errorf("user: %q differs from the task's user %q: set one of them", task.User, cfg.User)
	case task.mode() == nspawn.Boot && cfg.User != "":
		return "", fmt.Errorf("user: the task's user %q cannot be combined with boot", cfg.User)
	case task.mode() == nspawn.Boot:
		return "", nil
	}
	return cmp.Or(task.User, cfg.User, image.Config.User), nil
}

func workingDirectory(task TaskConfig, image foundImage) string {
	if task.mode() == nspawn.Boot {
		return ""
	}
	return cmp.Or(task.WorkingDirectory, image.Config.WorkingDir)
}

// newEnvironment is that of the image, of Nomad and of the job, each over the one
// before. Names of the image that systemd does not pass on are left out: nobody
// here could change them.
func newEnvironment(task TaskConfig, cfg *drivers.TaskConfig, image foundImage) (map[string]string, error) {
	env := map[string]string{}
	for _, variable := range image.Config.Env {
		if name, value, ok := strings.Cut(variable, "="); ok && nspawn.ValidEnvironmentName(name) {
			env[name] = value
		}
	}
	maps.Copy(env, cfg.Env)
	maps.Copy(env, task.Environment)
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !utf8.ValidString(env[name]) || strings.Contains(env[name], "\x00"):
			errs = append(errs, fmt.Errorf("env: the value of %q is not valid UTF-8, which systemd requires", name))
		case nspawn.ValidEnvironmentName(name):
		case strings.HasPrefix(name, "NOMAD_META_"):
			// Nomad keeps the dots of a meta key. Such a key is for templates
			// and constraints; it does not keep the task from running.
			delete(env, name)
		default:
			errs = append(errs, fmt.Errorf("env: %q is not a name that systemd passes on: use letters, digits and _", name))
		}
	}
	return env, errors.Join(errs...)
}

// payload is the command, or the arguments of the image's init. systemd and its
// journald read theirs there, as they read the kernel's command line elsewhere.
func payload(task TaskConfig, image foundImage) ([]string, error) {
	command, _, _ := words(task.Command)
	command = append(command, task.Args...)
	if task.mode() == nspawn.Boot {
		return append(initArgs(task), command...), nil
	}
	if task.imageKind() != ociImage {
		return command, nil
	}
	// As docker does: what the job gives replaces the image's Cmd, and the
	// entrypoint stays before it.
	entrypoint := task.Entrypoint
	if len(entrypoint) == 0 {
		entrypoint = image.Config.Entrypoint
		if len(command) == 0 {
			command = image.Config.Cmd
		}
	}
	command = slices.Concat(entrypoint, command)
	if image.Stored != "" && len(command) == 0 {
		return nil, errors.New("command: is required: the image has neither an entrypoint nor a command")
	}
	return command, nil
}

// initArgs go before those of the job, which can say otherwise.
func initArgs(task TaskConfig) []string {
	// Nobody is there to answer what systemd-firstboot.service asks on the
	// console of an image without a machine ID, as mkosi makes it: the boot
	// would wait for ever.
	args := []string{"systemd.firstboot=no"}
	if task.ForwardJournal {
		args = append(args, "systemd.journald.forward_to_console=1")
	}
	return args
}

// logsToJournal says that the task's output goes to the host's journal: there
// is no collector, or the job asks for it.
func logsToJournal(policy Config, task TaskConfig) bool {
	return policy.DisableLogCollection || task.Logging != nil && task.Logging.Driver == "journald"
}

// linkJournal: the journal of a booted machine is a journal like the host's,
// a command has none.
func linkJournal(task TaskConfig) string {
	switch {
	case task.LinkJournal != "":
		return task.LinkJournal
	case task.mode() == nspawn.Boot:
		return "try-guest"
	}
	return "no"
}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// machineID makes `journalctl --merge` and `machinectl` show the allocation.
func machineID(allocID string) string {
	if !uuidPattern.MatchString(allocID) {
		return ""
	}
	return allocID
}

func description(cfg *drivers.TaskConfig) string {
	text := fmt.Sprintf("Nomad task %s of group %s, job %s (namespace %s, allocation %s)",
		cfg.Name, cfg.TaskGroupName, cfg.JobName, cfg.Namespace, cfg.AllocID)
	// systemd writes it as it is into the unit's file, which it reads after a
	// daemon-reload: a line feed in a job's name would begin settings of root's.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// allocDirField is the journal field with the allocation's directory on the host.
const allocDirField = "NOMAD_ALLOC_HOST_DIR"

func journalFields(cfg *drivers.TaskConfig) map[string]string {
	return map[string]string{
		allocDirField:      cfg.AllocDir,
		"NOMAD_ALLOC_ID":   cfg.AllocID,
		"NOMAD_GROUP_NAME": cfg.TaskGroupName,
		"NOMAD_JOB_ID":     cfg.JobID,
		"NOMAD_JOB_NAME":   cfg.JobName,
		"NOMAD_NAMESPACE":  cfg.Namespace,
		"NOMAD_NODE_ID":    cfg.NodeID,
		"NOMAD_TASK_ID":    cfg.ID,
		"NOMAD_TASK_NAME":  cfg.Name,
	}
}

// newBinds are the directories that Nomad gives to each task, its volumes, and
// what the job binds.
func newBinds(policy Config, task TaskConfig, cfg *drivers.TaskConfig) ([]nspawn.Bind, error) {
	dirs := cfg.TaskDir()
	binds := []nspawn.Bind{
		{Source: dirs.SharedAllocDir, Destination: containerDir(cfg, "NOMAD_ALLOC_DIR", "/alloc"), Plain: true},
		{Source: dirs.LocalDir, Destination: containerDir(cfg, "NOMAD_TASK_DIR", "/local"), Owned: true, Plain: true},
		{Source: dirs.SecretsDir, Destination: containerDir(cfg, "NOMAD_SECRETS_DIR", "/secrets"), Owned: true, Plain: true},
	}
	// The log directory holds the FIFOs that Nomad reads (CVE-2026-6959).
	binds = append(binds, nspawn.Bind{Source: dirs.LogDir, Destination: filepath.Join(binds[0].Destination, "logs"), ReadOnly: true, Plain: true})
	var errs []error
	for _, mount := range cfg.Mounts {
		bind, err := volume(mount)
		binds, errs = append(binds, bind), append(errs, err)
	}
	for _, option := range []struct {
		name     string
		binds    map[string]string
		readOnly bool
	}{{"bind", task.Bind, false}, {"bind_read_only", task.BindReadOnly, true}} {
		for _, source := range slices.Sorted(maps.Keys(option.binds)) {
			path, err := hostPath(policy, dirs.Dir, source)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s[%q]: %w", option.name, source, err))
			}
			binds = append(binds, nspawn.Bind{Source: path, Destination: filepath.Clean(option.binds[source]), ReadOnly: option.readOnly})
		}
	}
	return binds, errors.Join(errs...)
}

func containerDir(cfg *drivers.TaskConfig, variable, fallback string) string {
	if dir := cfg.Env[variable]; filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	return fallback
}

// volume is a host or CSI volume. It needs no permission of ours: the operator
// has configured it.
func volume(mount *drivers.MountConfig) (nspawn.Bind, error) {
	bind := nspawn.Bind{
		Source:      mount.HostPath,
		Destination: filepath.Join("/", mount.TaskPath),
		ReadOnly:    mount.Readonly,
	}
	if mode := mount.PropagationMode; mode != "" && mode != "private" {
		return bind, fmt.Errorf("volume_mount %s: propagation_mode %q is not supported, only private", mount.TaskPath, mode)
	}
	return bind, nil
}

// hostPath is a path of the host, if the operator allows it. A relative path is
// one of the task's own directory and cannot leave it.
func hostPath(policy Config, taskDir, path string) (string, error) {
	switch {
	case filepath.IsAbs(path) && !policy.Volumes:
		return path, errors.New("paths of the host are not allowed; the operator has to allow them with volumes = true in the plugin's config, or the path be relative to the task's directory")
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case !filepath.IsLocal(path):
		return path, errors.New("leaves the task's directory")
	}
	return filepath.Join(taskDir, path), nil
}

// distinct refuses two mounts at one place, of which one would be lost.
func distinct(binds []nspawn.Bind, overlays []nspawn.Overlay) error {
	var errs []error
	seen := map[string]string{}
	add := func(source, destination string) {
		if other, ok := seen[destination]; ok {
			errs = append(errs, fmt.Errorf("bind: both %s and %s are bound to %s", other, source, destination))
		}
		seen[destination] = source
	}
	for _, bind := range binds {
		add(bind.Source, bind.Destination)
	}
	for _, overlay := range overlays {
		add("an overlay", overlay.Destination)
	}
	return errors.Join(errs...)
}
