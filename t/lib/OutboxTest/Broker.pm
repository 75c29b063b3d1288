
=pod

=head1 NAME

OutboxTest::Broker - what tests do with a broker, real or not

=head1 DESCRIPTION

The base of OutboxTest::Kafka and OutboxTest::Mock; all of it goes through
F<test/ktool>.  Keys, values and headers are bytes.

=cut

package OutboxTest::Broker;

use strict;
use warnings;

use Carp;
use Encode qw(encode_utf8);
use Exporter 'import';
use IPC::Run ();
use JSON::PP ();
use OutboxTest::Guard qw(tool spawn_guarded reap);

our @EXPORT_OK = qw(partition_of);

# Where Apache Kafka's own clients put a key: murmur2, without its sign.
sub partition_of
{
	my ($key, $partitions) = @_;
	my $m = 0x5bd1e995;
	my $mask = 0xffffffff;
	my $h = 0x9747b28c ^ length $key;
	my $rest = length($key) % 4;

	foreach my $k (unpack('V*', substr($key, 0, length($key) - $rest)))
	{
		$k = ($k * $m) & $mask;
		$k = (($k ^ ($k >> 24)) * $m) & $mask;
		$h = (($h * $m) & $mask) ^ $k;
	}
	if ($rest > 0)
	{
		$h ^= unpack('V', substr($key, -$rest) . "\0" x (4 - $rest));
		$h = ($h * $m) & $mask;
	}
	$h = (($h ^ ($h >> 13)) * $m) & $mask;
	$h ^= $h >> 15;
	return ($h & 0x7fffffff) % $partitions;
}

# Further arguments for ktool, such as credentials.
sub ktool_options
{
	return ();
}

# Where the tests' own requests go; differs where rights are tested.
sub admin_bootstrap
{
	my ($self) = @_;
	return $self->bootstrap;
}

sub bootstrap
{
	my ($self) = @_;
	return $self->{bootstrap};
}

# Run ktool; returns its exit status, output and errors.
sub try_ktool
{
	my ($self, $input, @args) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[
			tool('guard'), tool('ktool'),
			'-b', $self->admin_bootstrap,
			$self->ktool_options, @args
		],
		'<', \$input, '>', \$out, '2>', \$err,
		IPC::Run::timeout(180));

	# As a shell has it: a signal is a failure, too.
	return (($? & 127) ? 128 + ($? & 127) : $? >> 8, $out, $err);
}

sub ktool
{
	my ($self, @args) = @_;
	return $self->ktool_with_input('', @args);
}

sub ktool_with_input
{
	my ($self, $input, @args) = @_;
	my ($status, $out, $err) = $self->try_ktool($input, @args);

	croak "ktool @args: $err" if $status != 0;
	chomp $out;
	return $out;
}

# create_topic($name, $partitions = 1, %config)
sub create_topic
{
	my ($self, $name, $partitions, %config) = @_;

	$self->ktool('create-topic', $name, $partitions // 1, 1,
		map { "$_=$config{$_}" } sort keys %config);
	return;
}

# create_topic_on($name, [1, 2], %config): partition 0 on broker 1 alone, ...
sub create_topic_on
{
	my ($self, $name, $brokers, %config) = @_;

	$self->ktool('create-topic', $name, scalar(@$brokers), '@' . join(',', @$brokers),
		map { "$_=$config{$_}" } sort keys %config);
	return;
}

sub delete_topic
{
	my ($self, $name) = @_;

	$self->ktool('delete-topic', $name);
	return;
}

sub add_partitions
{
	my ($self, $name, $total) = @_;

	$self->ktool('add-partitions', $name, $total);
	return;
}

# Replaces all settings of the topic.
sub alter_config
{
	my ($self, $name, %config) = @_;

	$self->ktool('alter-config', $name,
		map { "$_=$config{$_}" } sort keys %config);
	return;
}

# { name => [leader of each partition] }
sub topics
{
	my ($self) = @_;
	my %topics;

	foreach my $line (split /\n/, $self->ktool('topics'))
	{
		my ($name, $partitions, $leaders) = split /\t/, $line;
		$topics{$name} = [ split /,/, $leaders // '' ];
	}
	return \%topics;
}

# (low, high)
sub watermarks
{
	my ($self, $topic, $partition) = @_;
	return split / /, $self->ktool('watermarks', $topic, $partition // 0);
}

# produce($topic, { key, value, headers => [[name, value], ...], partition }, ...)
# A key, value or header that is missing or undef is null.  Returns a list of
# { partition, offset }, in the order of acknowledgement.
sub produce
{
	my ($self, $topic, @records) = @_;
	my $input = '';

	foreach my $record (@records)
	{
		my @fields = ($record->{partition} // '', _escape($record->{key}), _escape($record->{value}));

		foreach my $header (@{ $record->{headers} // [] })
		{
			push @fields, _escape($header->[0]) . '=' . _escape($header->[1]);
		}
		$input .= join("\t", @fields) . "\n";
	}
	my $out = $self->ktool_with_input($input, 'produce', $topic);
	return map { JSON::PP::decode_json($_) } split /\n/, $out;
}

# Produce values without keys into partition 0, in a transaction that ends so:
# commit or abort.
sub produce_in_transaction
{
	my ($self, $topic, $end, @values) = @_;

	$self->ktool_with_input(join('', map { "0\t\\N\t$_\n" } @values),
		'-X', 'transactional.id=ktool', 'produce', $topic, $end);
	return;
}

sub _escape
{
	my ($bytes) = @_;

	return '\N' unless defined $bytes;
	$bytes = encode_utf8($bytes) if utf8::is_utf8($bytes);
	$bytes =~ s/([\\=\x00-\x1f\x7f-\xff])/sprintf('\\x%02x', ord $1)/ge;
	return $bytes;
}

# All records of a topic, as a list of hashes: partition, offset, timestamp,
# key, value, headers (a list of [name, value]) and header (the last value of
# each name).  Within a partition they are in order.  Options are ktool's.
sub consume
{
	my ($self, $topic, @options) = @_;
	return $self->consume_with([], $topic, @options);
}

# The same with properties of the client: [ 'isolation.level=read_committed' ].
sub consume_with
{
	my ($self, $properties, $topic, @options) = @_;
	my $out = $self->ktool((map { ('-X', $_) } @$properties),
		'consume', $topic, @options);

	return map { _record($_) } split /\n/, $out;
}

sub _record
{
	my ($json) = @_;
	my $record = JSON::PP::decode_json($json);

	$record->{$_} = _bytes($record->{$_}) foreach (qw(key value));
	foreach my $header (@{ $record->{headers} })
	{
		$_ = _bytes($_) foreach (@$header);
		$record->{header}{ $header->[0] } = $header->[1];
	}
	return $record;
}

sub _bytes
{
	my ($value) = @_;

	return undef unless defined $value;
	return pack('H*', $value->{hex}) if ref $value;
	return encode_utf8($value);
}

# Start ktool's inventory service; returns its pid for stop_service().
sub start_service
{
	my ($self, $in, $result, @options) = @_;

	return spawn_guarded(
		{},
		tool('ktool'), '-b', $self->admin_bootstrap, $self->ktool_options,
		'service', $in, $result, @options);
}

sub stop_service
{
	my ($self, $pid) = @_;

	reap($pid, 'TERM');
	return;
}

1;
