package job

import (
	"errors"
	"maps"
	"path/filepath"
	"regexp"
	"slices"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// credentialOptions are secrets for systemd in the image, or for a command that looks for
// them in $CREDENTIALS_DIRECTORY.
type credentialOptions struct {
	LoadCredential map[string]string `codec:"load_credential"`
	SetCredential  map[string]string `codec:"set_credential"`
}

var credentialSchema = schema.Options{
	"load_credential": schema.StringMap("load_credential"),
	"set_credential":  schema.StringMap("set_credential"),
}

// credentialName is a restricted form of the names that systemd accepts
// (credential_name_valid in creds-util.c).
var credentialName = regexp.MustCompile(`^[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,254}$`)

func (c TaskConfig) validateCredentials() error {
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(c.LoadCredential)) {
		file, option := c.LoadCredential[name], "load_credential."+name
		found.Add(schema.NotEmpty(option, file), checkCredentialName(option, name))
		found.Unless(filepath.IsLocal(file), "%s: %q is not a path below the task's directory, as secrets/token", option, file)
		_, both := c.SetCredential[name]
		found.Unless(!both, "%s: is in set_credential, too", option)
	}
	for _, name := range slices.Sorted(maps.Keys(c.SetCredential)) {
		found.Add(checkCredentialName("set_credential."+name, name))
	}
	return found.Err()
}

func checkCredentialName(option, name string) error {
	return errors.Join(schema.NotEmpty(option, name), schema.Matches(option, name, credentialName, "a name of a credential"))
}

func (c TaskConfig) applyCredentials(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	for name, file := range c.LoadCredential {
		spec.Credentials = append(spec.Credentials, machine.Credential{Name: name, Dir: in.Task.TaskDir().Dir, File: filepath.Clean(file)})
	}
	for name, value := range c.SetCredential {
		spec.Credentials = append(spec.Credentials, machine.Credential{Name: name, Value: value})
	}
	found.Unless(len(spec.Credentials) == 0 || spec.User == "" || spec.User == "root" || spec.User == "0",
		"load_credential, set_credential: only root of the container can read them, and the command runs as %q", spec.User)
	return found.Err()
}
