
=pod

=head1 NAME

OutboxTest::Guard - processes that end with the test, however it ends

=head1 DESCRIPTION

A test that is killed with -9 has no END block.  So a child that it starts
itself runs under F<test/guard>, which the kernel kills when the test is gone;
and for servers, which leave their parent, a watchdog holds the other end of a
pipe and stops them when the pipe closes.  The watchdog also ends the test when
prove is gone.

=cut

package OutboxTest::Guard;

use strict;
use warnings;

use Exporter 'import';
use Fcntl;
use File::Basename qw(dirname);
use File::Spec;
use POSIX ();
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(
  tool
  spawn_guarded
  reap
  process_state
  wait_for_exit
  watch_server
);

my %children;    # pid => 1, of this process
my $owner = $$;
my $watchdog;    # the writing end of its pipe

# The path of a program built from test/.
sub tool
{
	my ($name) = @_;
	my $dir = $ENV{OUTBOX_TEST_TOOLS}
	  // File::Spec->rel2abs(dirname(__FILE__) . '/../../../test/build');

	die "$dir/$name is missing: run make test-tools" unless -x "$dir/$name";
	return "$dir/$name";
}

# Start a command; %fds: stdin, stdout, stderr, each a file handle or a path.
# Returns its pid.
sub spawn_guarded
{
	my ($fds, @command) = @_;
	my $guard = tool('guard');

	# Buffered output would be written twice.
	STDOUT->flush();
	STDERR->flush();

	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		my $ok = _redirect(0, '<', $fds->{stdin} // '/dev/null')
		  && _redirect(1, '>>', $fds->{stdout} // '/dev/null')
		  && _redirect(2, '>>', $fds->{stderr} // '/dev/null');

		{
			no warnings 'exec';
			exec {$guard} $guard, @command if $ok;
		}
		POSIX::_exit(127);    # no END blocks here
	}
	$children{$pid} = 1;
	return $pid;
}

# By number: within a test STDOUT and STDERR may be anything.
sub _redirect
{
	my ($fd, $mode, $target) = @_;
	my $from = ref $target ? $target : undef;

	if (!defined $from)
	{
		open($from, $mode, $target) or return 0;
	}
	return defined POSIX::dup2(fileno($from), $fd);
}

# The state letter of a process (Z is dead), or undef.
sub process_state
{
	my ($pid) = @_;

	open(my $stat, '<', "/proc/$pid/stat") or return undef;
	my $line = <$stat> // return undef;
	return $line =~ /.*\) (\S)/s ? $1 : undef;
}

# Wait until a process, of whatever parent, has ended.  An orphan may stay a
# zombie for a while; that counts as ended.
sub wait_for_exit
{
	my ($pid, $timeout) = @_;
	my $deadline = time() + ($timeout // 30);

	while (1)
	{
		my $state = process_state($pid);
		return 1 if !defined $state || $state eq 'Z' || $state eq 'X';
		return 0 if time() > $deadline;
		sleep(0.02);
	}
}

# Signal a child and collect it; it gets SIGKILL if it takes too long.
# Returns its status.
sub reap
{
	my ($pid, $signal, $timeout) = @_;
	my $deadline = time() + ($timeout // 30);

	return undef unless delete $children{$pid};
	kill($signal, $pid);
	while (waitpid($pid, POSIX::WNOHANG()) == 0)
	{
		if (time() > $deadline)
		{
			kill('KILL', $pid);
			waitpid($pid, 0);
			last;
		}
		sleep(0.02);
	}
	return $?;
}

# See to it that the server of a data directory ends with this test.
sub watch_server
{
	my ($pgdata) = @_;

	_start_watchdog() unless defined $watchdog;
	syswrite($watchdog, "$pgdata\n");
	return;
}

sub _start_watchdog
{
	my $test = $$;
	my $harness = getppid();

	pipe(my $read, $watchdog) or die "pipe: $!";
	STDOUT->flush();
	STDERR->flush();
	my $pid = fork() // die "fork: $!";
	return if $pid != 0;

	# An own session, so that no signal to the test's group ends it; and none
	# of the test's output, whose end prove waits for.
	close($watchdog);
	POSIX::setsid();
	open(my $null, '+<', '/dev/null');
	POSIX::dup2(fileno($null), $_) foreach (0, 1, 2);
	$SIG{$_} = 'IGNORE' foreach (qw(INT TERM HUP PIPE));
	$0 = 'outbox-test-watchdog';
	_watch($read, $test, $harness);
	POSIX::_exit(0);
}

sub _watch
{
	my ($read, $test, $harness) = @_;
	my $input = '';

	while (1)
	{
		my $ready = '';
		vec($ready, fileno($read), 1) = 1;
		if (select($ready, undef, undef, 1) > 0)
		{
			my $n = sysread($read, $input, 65536, length $input);
			last if !$n;
		}
		elsif (_parent_of($test) != $harness)
		{
			kill('KILL', $test);
		}
	}
	_end_server($_) foreach (split /\n/, $input);
	return;
}

sub _parent_of
{
	my ($pid) = @_;

	open(my $stat, '<', "/proc/$pid/stat") or return -1;
	my $line = <$stat> // return -1;
	return $line =~ /.*\) \S (\d+)/s ? $1 : -1;
}

# Every process of a server works in its data directory.
sub _end_server
{
	my ($pgdata) = @_;

	foreach my $round (1 .. 100)
	{
		my @pids = grep { (readlink("/proc/$_/cwd") // '') eq $pgdata }
		  map { m{^/proc/(\d+)$} ? $1 : () } glob('/proc/[0-9]*');

		last if !@pids;
		kill($round == 1 ? 'QUIT' : 'KILL', @pids) if $round == 1 || $round > 20;
		sleep(0.1);
	}
	return;
}

END
{
	# A forked child that ends by exit() gets here, too.
	if ($$ == $owner)
	{
		my $status = $?;

		reap($_, 'KILL') foreach (keys %children);
		$? = $status;
	}
}

1;
