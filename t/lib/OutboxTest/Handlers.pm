
=pod

=head1 NAME

OutboxTest::Handlers - what tests of subscriptions share

=head1 SYNOPSIS

  my $test = OutboxTest::Handlers->new($node, $kafka);
  my $topic = $test->new_topic('orders');
  $kafka->produce($topic, { key => 'k', value => 'v' });
  $test->subscribe($topic, q(PERFORM note(r, 'seen')), rest => ', max_attempts => 3');
  $test->counts_are($topic, { handled => 1 }, 'it is handled');
  is($test->notes($topic), '0:0 seen', 'once');

What is produced before the subscription is handled in one batch.

=cut

package OutboxTest::Handlers;

use strict;
use warnings;

use OutboxTest::Cluster;
use Test::More;

my @kinds = qw(handled failed repeated dead);
my $number = 0;

# The function note(record, text) leaves what a handler did in the table "notes".
sub new
{
	my ($class, $node, $kafka) = @_;
	my $self = bless { node => $node, kafka => $kafka }, $class;

	$self->query(<<'EOS');
CREATE TABLE notes (number bigint GENERATED ALWAYS AS IDENTITY, topic text, partition int,
	"offset" bigint, note text, role name DEFAULT current_user,
	batch xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION note(r outbox.record, text) RETURNS void LANGUAGE sql
AS 'INSERT INTO public.notes (topic, partition, "offset", note) VALUES (r.topic, r.partition, r."offset", $2)';
GRANT SELECT, INSERT ON notes TO PUBLIC;
EOS
	return $self;
}

# A topic that nobody else has.  Partitions: 1 if not said.
sub new_topic
{
	my ($self, $name, $partitions) = @_;
	my $topic = "$name-" . $number++;

	$self->{kafka}->create_topic($topic, $partitions // 1);
	return $topic;
}

# The SQL that makes a handler f(r outbox.record) of a body.  Options: returns,
# language.
sub function
{
	my ($self, $name, $body, %options) = @_;
	my $returns = $options{returns} // 'void';
	my $language = $options{language} // 'plpgsql';

	$body = "BEGIN $body; END" if $language eq 'plpgsql' && $body !~ /^\s*(DECLARE|BEGIN)\b/;
	return "CREATE OR REPLACE FUNCTION $name(r outbox.record) RETURNS $returns"
	  . " LANGUAGE $language AS \$body\$ $body \$body\$;";
}

# Subscribes to a topic with a handler of its own, whose name is returned.
# Options: those of function; reply, a topic; rest, further arguments; role.
sub subscribe
{
	my ($self, $topic, $body, %options) = @_;
	my $name = $options{name} // 'h_' . $topic =~ s/\W/_/gr;
	my $reply = defined $options{reply} ? "'$options{reply}'" : 'NULL';

	$self->query(
		(defined $options{role} ? "SET ROLE $options{role};" : '')
		. $self->function($name, $body, %options)
		. "SELECT outbox.subscribe('$topic', '$name(outbox.record)', $reply"
		. ($options{rest} // '') . ')');
	return $name;
}

sub query
{
	my ($self, $sql) = @_;
	return $self->{node}->safe_psql('postgres', $sql);
}

sub wait_for
{
	my ($self, $sql, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($self->{node}, 'postgres', $sql, $expected);
}

# Wait until so many records of a topic are dealt with, and compare what became
# of them; what isn't named is expected to be 0.
sub counts_are
{
	my ($self, $topic, $expected, $name) = @_;
	my %expected = ((map { $_ => 0 } @kinds), %$expected);
	my $total = 0;
	my %counts;

	$total += $_ foreach (values %expected);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->wait_for(
		'SELECT ' . join(' + ', map { "records_$_" } @kinds)
		  . " >= $total FROM outbox.subscription WHERE topic = '$topic'", 't');
	@counts{@kinds} = split /\|/, $self->query(
		'SELECT ' . join(', ', map { "records_$_" } @kinds)
		  . " FROM outbox.subscription WHERE topic = '$topic'");
	is_deeply(\%counts, \%expected, $name);
	return;
}

# What the handler of a topic has noted, in the order of the notes
sub notes
{
	my ($self, $topic) = @_;

	return $self->query(
		"SELECT string_agg(format('%s:%s %s', partition, \"offset\", note), ', ' ORDER BY number)
		 FROM notes WHERE topic = '$topic'");
}

# How many batches the notes are of
sub batches
{
	my ($self, $topic) = @_;
	return $self->query("SELECT count(DISTINCT batch) FROM notes WHERE topic = '$topic'");
}

# The first records of a topic of one partition, once there are so many
sub records
{
	my ($self, $topic, $n) = @_;
	my @records = $self->{kafka}->consume($topic, '-f', '-c', $n, '-t', 60);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	fail("$topic has " . @records . " records and not $n") if @records != $n;
	return @records;
}

# A message id
sub id
{
	my ($self, $n) = @_;
	return sprintf('5b1f1f4b-93b4-4b5e-bf20-%012x', $n);
}

1;
