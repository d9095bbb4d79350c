package oci

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// ErrTemporary is matched by errors after which another attempt may succeed: network
// errors, a busy or broken registry (408, 429, 5xx), a deadline, a truncated blob. All
// other errors are permanent.
var ErrTemporary = fetch.ErrTemporary

// maxErrorText limits the text that a registry can add to an error, in bytes.
const maxErrorText = 1000

// failure is the type of all errors of this package.
type failure struct {
	text      string
	temporary bool
	err       error
}

// fail returns the error that op has failed because of err.
func fail(op string, err error) error {
	return &failure{text: op + ": " + describe(err), temporary: isTemporary(err), err: err}
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() error { return f.err }

func (f *failure) Is(target error) bool { return target == ErrTemporary && f.temporary }

func isTemporary(err error) bool {
	var answer *transport.Error
	switch {
	case errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &answer):
		return busy(answer.StatusCode)
	}
	return errors.Is(err, ErrTemporary) || errors.Is(err, context.DeadlineExceeded)
}

// busy reports whether an HTTP status is one that may change soon.
func busy(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

// refused reports whether the registry or its token server requires other credentials.
func refused(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden)
}

// describe returns the text of an error on one line, without secrets and with advice.
func describe(err error) string {
	text := err.Error()
	var answer *transport.Error
	if errors.As(err, &answer) && answer.Request != nil {
		text = scrub(text, secretsOf(answer.Request))
	}
	// The transport appends the whole response of a token server after the first line.
	text, _, _ = strings.Cut(text, "\n")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text + advice(err)
}

// scrub removes secrets from a text, because a registry may echo what it has received.
func scrub(text string, secrets []string) string {
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "REDACTED")
		}
	}
	return text
}

// secretsOf returns the credentials in a request: a password or token in the header, or a
// refresh token in the form that is sent to a token server.
func secretsOf(req *http.Request) []string {
	_, sent, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	_, password, _ := req.BasicAuth()
	secrets := []string{sent, password}
	if req.GetBody == nil {
		return secrets
	}
	if body, err := req.GetBody(); err == nil {
		raw, _ := io.ReadAll(body)
		form, _ := url.ParseQuery(string(raw))
		secrets = append(secrets, form.Get("refresh_token"))
	}
	return secrets
}

func advice(err error) string {
	if fetch.Untrusted(err) {
		return "; if the registry is yours, give the plugin its CA file or list it as one without TLS"
	}
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return ""
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized:
		return " (401: set auth { } in the task or the docker config of the plugin; some registries say so of images that do not exist, too)"
	case http.StatusForbidden:
		return " (403: the credentials in auth { } of the task or in the docker config of the plugin do not allow this)"
	case http.StatusNotFound:
		return " (404: there is no such image, tag or blob)"
	case http.StatusTooManyRequests:
		return " (429: too many requests; log in with auth { } or use a mirror)"
	}
	return ""
}
